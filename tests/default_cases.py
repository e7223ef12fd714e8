"""How many cases of a slow test run by default; the others are `slow`.

Each of these takes seconds a case. Cases are taken evenly over those that are not
`thorough`; 0: all of the test waits for `pytest -m slow`, which .ci/run asks for.
"""

BY_DEFAULT = {
    "test_acceptance.py": {
        "test_a_chain_of_embedded_heads_is_measured_as_it_decodes": 0,
    },
    "test_adapters.py": {
        "test_a_folder_of_adapters_decodes_as_the_merged_one": 0,
        "test_a_run_learns_keeps_adapters_alone_and_leaves_the_base": 0,
        "test_a_run_that_was_stopped_ends_with_the_same_bits": 1,
        "test_adapters_of_another_base_or_of_none_are_refused": 0,
        "test_gradients_reach_adapters_only": 2,
    },
    "test_aot.py": {
        "test_a_shape_has_as_many_weights_as_the_model_it_is_of": 1,
        "test_heads_and_drafters_come_as_the_method_asks": 0,
    },
    "test_attended.py": {
        "test_without_weight_it_is_maskgit": 0,
    },
    "test_attention.py": {
        "test_a_query_that_sees_nothing_is_exactly_zero": 1,
    },
    "test_axial.py": {
        "test_pixel_by_pixel_is_the_pass_over_whole_images": 1,
    },
    "test_bench_hotpath.py": {
        "test_a_whole_decode_is_printed_and_stored_whatever_becomes_of_the_next": 0,
    },
    "test_blocks.py": {
        "test_a_hole_in_front_adds_no_call_to_llada": 1,
        "test_block_causal_decoding_equals_the_slow_decoder": 1,
        "test_holes_equal_the_slow_decoder": 2,
    },
    "test_caches.py": {
        "test_a_cache_refreshed_every_step_is_no_cache": 1,
        "test_a_choice_without_what_was_filled_is_caught": 0,
        "test_a_finished_block_must_be_stored_once_more": 1,
        "test_a_pipeline_that_waits_is_a_row_of_blocks": 1,
        "test_a_response_all_of_which_is_least_alike_is_made_anew": 0,
        "test_features_made_anew_every_call_are_no_cache": 0,
        "test_lanes_for_the_whole_canvas_are_the_decode_without_a_cache": 0,
        "test_one_part_a_block_is_fast_dllm": 0,
        "test_parts_over_the_exact_cache_equal_the_canvas": 0,
        "test_slots_beyond_those_that_are_used_change_nothing": 1,
        "test_the_cache_of_a_pipeline_is_exact_for_every_prompt_length": 0,
        "test_without_local_steps_it_is_a_decode_of_whole_canvases": 0,
    },
    "test_check.py": {
        "test_a_rule_over_the_batch_is_named": 0,
        "test_a_rule_that_does_not_end_is_named": 0,
        "test_a_rule_that_reads_its_knob_is_named": 0,
        "test_the_command_line": 0,
        "test_the_drawn_tokens_confidence_is_named": 0,
    },
    "test_checkpoints.py": {
        "test_a_model_finds_its_method": 0,
        "test_a_round_trip_through_orbax_is_equal_bit_for_bit": 1,
        "test_diffusion_gemma_arrays": 0,
        "test_recorded_generations_through_the_command_line": 2,
    },
    "test_commit.py": {
        "test_number_of_masks_is_binomial": 1,
        "test_remdm_reopens_and_still_ends": 0,
    },
    "test_compare.py": {
        "test_the_cost_of_calls_is_kept_by_device_and_model": 0,
    },
    "test_composition.py": {
        "test_a_few_of_the_matrix": 0,
        "test_a_part_that_does_nothing_is_caught": 0,
    },
    "test_continuous.py": {
        "test_a_chain_has_the_targets_joint_law": 0,
        "test_one_value_has_the_targets_law_and_refuses_as_often_as_they_differ": 0,
        "test_what_the_released_code_does_is_another_law": 0,
    },
    "test_contracts.py": {
        "test_a_drafter_cache_equals_prefill_of_what_is_committed": 0,
        "test_a_drafter_records_target_taps_of_what_was_accepted": 0,
        "test_a_window_is_the_same_as_a_run_and_position_by_position": 1,
        "test_caches_with_block_starts_of_their_own": 0,
        "test_decodes_are_the_same_with_64_bit_integers": 1,
        "test_eos_at_awkward_places": 1,
        "test_probes_are_read_but_never_stored_or_accepted": 0,
    },
    "test_controlled.py": {
        "test_a_model_that_copies_its_control_does_so_in_any_order": 2,
        "test_it_stays_lossless_and_without_strength_is_the_model": 0,
    },
    "test_copies.py": {
        "test_a_cascade_calls_its_draft_model_less_often": 0,
        "test_a_cascade_drafts_what_the_draft_model_does": 0,
        "test_a_cascade_that_forgets_to_store_is_caught": 0,
        "test_nothing_is_searched_behind_what_is_skipped": 0,
        "test_the_place_in_the_input_is_that_of_a_search": 1,
    },
    "test_denoised.py": {
        "test_a_guess_behind_noise_is_biased": 0,
        "test_a_step_with_the_true_token_lands_a_level_lower": 1,
        "test_denoised_guesses_are_lossless_in_law": 0,
        "test_noise_changes_no_token_at_temperature_0": 0,
        "test_without_levels_it_is_speculative_jacobi": 0,
    },
    "test_distillation.py": {
        "test_a_run_learns_to_be_accepted": 0,
        "test_a_writer_goes_on_as_it_decodes_and_nothing_flows_through_it": 0,
        "test_some_steps_write_and_the_others_take_what_is_given": 0,
        "test_the_first_draft_is_accepted_as_often_as_the_laws_overlap": 0,
    },
    "test_distilled.py": {
        "test_a_decode_says_what_the_student_was_trained_to": 0,
        "test_a_small_student_learns_the_joint_that_no_token_alone_has": 0,
        "test_a_student_that_knows_the_function_has_the_joint_law_in_one_call": 0,
        "test_the_loss_is_its_definition_and_its_gradient_reaches_everything": 0,
    },
    "test_dream_vlm.py": {
        "test_at_the_start_the_cross_attention_is_nothing": 0,
        "test_decoding_is_the_multimodal_targets_token_for_token": 1,
        "test_drafts_are_those_of_layers_that_keep_nothing": 0,
        "test_the_layers_learn_to_draft_behind_images": 0,
    },
    "test_eagle.py": {
        "test_a_fused_drafter_reads_true_taps_after_each_round": 0,
        "test_a_fused_layer_drafts_from_taps_and_changes_no_token": 0,
        "test_a_grown_tree_is_that_of_lists": 0,
        "test_a_layer_that_is_right_has_its_whole_depth_accepted": 1,
        "test_drafts_are_those_of_a_drafter_that_keeps_nothing": 0,
        "test_guessed_features_kept_as_true_are_caught": 0,
        "test_training_time_test_is_the_draft_loop_on_the_texts_tokens": 0,
        "test_two_layers_with_a_cache_are_those_without": 0,
    },
    "test_easy_spec.py": {
        "test_a_group_of_one_is_every_kind_of_layer": 0,
        "test_drafts_of_layers_side_by_side_change_no_token": 0,
        "test_each_round_begins_on_an_exact_cache": 0,
        "test_groups_attend_from_where_they_begin": 1,
    },
    "test_embedded_lossless.py": {
        "test_a_batch_is_its_rows_alone": 1,
        "test_it_is_plain_sampling_with_the_same_seed": 2,
    },
    "test_exact.py": {
        "test_lossless_in_law": 1,
    },
    "test_falcon.py": {
        "test_a_memory_that_stays_behind_is_caught": 0,
        "test_drafts_are_those_of_a_drafter_that_keeps_nothing": 1,
        "test_no_token_is_another": 1,
        "test_the_loss_is_the_papers_by_hand": 1,
    },
    "test_files.py": {
        "test_a_failed_write_leaves_the_old_file_and_nothing_else": 1,
    },
    "test_flash.py": {
        "test_a_layer_learns_to_draft_behind_images": 0,
        "test_decoding_is_the_multimodal_targets_token_for_token": 1,
    },
    "test_frames.py": {
        "test_a_film_is_its_own_in_any_company": 0,
        "test_a_film_with_a_cache_is_the_film_without": 2,
        "test_a_window_of_a_row_is_raster_decoding_over_frames": 0,
        "test_chunks_side_by_side_are_chunks_one_by_one": 0,
        "test_frames_ahead_are_the_frames_of_the_actions_that_came": 0,
        "test_keys_of_noised_frames_are_of_what_nobody_sees": 0,
        "test_trained_runs_of_both_kinds_draw_clips": 0,
    },
    "test_fusing.py": {
        "test_fused_projections_say_and_store_what_separate_ones_do": 1,
        "test_grids_of_four_bits_are_those_of_the_parts": 0,
        "test_layers_that_run_in_groups_read_both": 0,
        "test_parts_in_another_order_are_another_model": 0,
        "test_the_command_line_says_which": 0,
    },
    "test_gaps.py": {
        "test_a_drafter_that_is_no_number_stops_the_row": 1,
        "test_a_row_that_is_no_number_stops_there": 4,
        "test_bfloat16_decodes": 1,
        "test_choices_are_names_that_their_tables_know": 1,
        "test_rows_of_a_transformer_do_not_see_each_other": 2,
    },
    "test_growth.py": {
        "test_a_part_of_what_is_no_longer_best_is_drawn_again": 1,
        "test_node_by_node_it_is_the_models_law": 0,
    },
    "test_heads.py": {
        "test_hydra_sees_its_path_and_medusa_does_not": 0,
        "test_no_token_is_another": 1,
        "test_the_loss_is_the_papers_by_hand": 2,
        "test_trees_are_those_of_the_state_before_the_root": 0,
    },
    "test_images.py": {
        "test_a_run_of_digits_draws_by_every_kind_of_method": 0,
        "test_digits_is_the_first_model_that_a_method_takes": 0,
        "test_generate_writes_a_picture_and_watch_shows_it_fill": 0,
    },
    "test_int8.py": {
        "test_how_far_the_embedded_target_is_off": 0,
        "test_lossless_methods_are_so_of_the_model_in_int8": 1,
    },
    "test_jacobi.py": {
        "test_an_early_exit_is_a_state_of_the_trajectory": 1,
        "test_calls_are_those_of_an_iteration_by_hand": 1,
        "test_groups_by_codes_are_between_plain_jacobi_and_groups_by_rank": 0,
        "test_groups_of_one_token_are_plain_speculative_jacobi": 0,
    },
    "test_jakiro.py": {
        "test_a_grown_tree_is_that_of_lists_and_its_last_level_said_ahead": 1,
        "test_equal_experts_are_one_mlp_and_leave_nothing_apart": 0,
        "test_no_token_is_another": 1,
    },
    "test_kernels.py": {
        "test_kernels_equal_the_oracle": 1,
    },
    "test_koala.py": {
        "test_no_token_is_another": 1,
        "test_the_loss_is_the_papers_by_hand": 1,
    },
    "test_lensed.py": {
        "test_a_draft_model_drafts_under_them_too": 1,
        "test_under_lenses_it_is_plain_decoding_under_them": 1,
    },
    "test_lowering.py": {
        "test_the_gpu_kernel_lowers_for_cuda": 1,
        "test_the_kernel_follows_the_platform_of_the_program": 1,
    },
    "test_lud.py": {
        "test_it_takes_what_masks_are_sure_of_and_verifies_nothing": 1,
        "test_units_are_runs_of_tokens_that_the_target_expects": 0,
    },
    "test_masked_rules.py": {
        "test_a_certain_mask_is_its_token": 0,
        "test_a_filter_reads_its_block_in_place": 1,
        "test_a_reach_of_the_canvas_is_no_cache_and_a_short_one_shows": 0,
        "test_a_scripted_gap_stops_in_its_stage": 1,
        "test_ascending_steps_take_log2_calls": 1,
        "test_set_block_decoding_is_the_entropy_bound_without_a_cache": 1,
    },
    "test_medusa2.py": {
        "test_heads_decode_with_the_target_that_came_out": 0,
        "test_the_loss_is_the_papers_by_hand": 1,
        "test_while_it_waits_the_target_is_what_it_was": 0,
    },
    "test_model_free.py": {
        "test_lookahead_drafts_what_its_window_wrote": 1,
        "test_no_copy_of_the_table_in_the_loop": 1,
        "test_phrases_are_what_the_target_wrote_at_refused_nodes": 1,
        "test_prompt_lookup_finds_what_a_search_finds": 1,
        "test_some_of_many_copies_are_read_evenly": 1,
    },
    "test_mtp.py": {
        "test_no_token_is_another": 1,
        "test_the_loss_is_the_papers_by_hand": 1,
    },
    "test_nested.py": {
        "test_a_run_makes_a_drafter_that_decodes": 0,
        "test_drafts_kept_whatever_they_are_make_another_text": 0,
        "test_each_sub_model_goes_on_where_the_one_before_it_stopped": 0,
        "test_whatever_exits_are_taken_the_tokens_are_the_targets": 0,
    },
    "test_online.py": {
        "test_no_weight_moves_nothing_and_weights_are_shares": 0,
        "test_the_loss_is_the_divergence_of_the_two_laws": 0,
    },
    "test_options.py": {
        "test_drafters_are_made_of_a_named_model": 1,
        "test_drafters_may_be_padded_to_another_size": 1,
    },
    "test_overlapped.py": {
        "test_a_state_keeps_its_dtypes_where_weights_and_compute_differ": 0,
        "test_each_model_alone_and_then_their_join_is_the_decode": 0,
        "test_every_phase_together_is_the_target_law": 1,
    },
    "test_own_models.py": {
        "test_check_says_what_a_network_serves": 0,
        "test_examples_of_parts_say_what_their_text_promises": 0,
        "test_what_is_decoded_is_what_the_network_says": 0,
    },
    "test_paced.py": {
        "test_a_call_that_is_too_narrow_is_caught": 0,
        "test_a_paced_chain_has_the_tokens_of_a_fixed_one": 0,
        "test_learning_a_length_is_hardly_dearer_than_knowing_it": 0,
        "test_lengths_chosen_from_earlier_rounds_keep_the_law": 1,
        "test_lookup_is_the_fixed_one_cut": 0,
        "test_no_neighbour_is_cheaper_by_the_predicted_cost": 0,
        "test_what_was_committed_without_it_is_made_up_for": 1,
    },
    "test_pairs.py": {
        "test_adversaries_cost_no_call_under_any_rule": 2,
        "test_every_drafter_meets_every_rule_or_is_refused": 1,
        "test_whatever_is_proposed_the_output_is_plain_sampling": 1,
    },
    "test_parallelbench.py": {
        "test_one_step_bounds": 1,
    },
    "test_parallelbench_rules.py": {
        "test_golden_table": 1,
    },
    "test_parallelbench_suite.py": {
        "test_a_run_goes_on_where_it_was": 0,
        "test_one_step_on_exact_laws_is_what_theory_says": 0,
        "test_the_embedded_models_are_as_good_as_their_records_say": 0,
    },
    "test_partial.py": {
        "test_after_a_full_pass_the_cache_is_exact_and_before_it_is_not": 0,
        "test_default_sizes_serve_a_short_context": 0,
        "test_full_passes_come_when_the_buffer_is_full_and_are_counted": 0,
        "test_parts_that_hold_everything_are_the_model_itself": 0,
    },
    "test_past_heads.py": {
        "test_clovers_states_are_drawn_to_the_targets": 0,
        "test_no_token_is_another": 1,
        "test_the_heads_learn_and_nothing_else": 1,
        "test_the_loss_is_the_papers_by_hand": 1,
        "test_trees_are_those_of_a_drafter_that_keeps_nothing": 1,
    },
    "test_precision.py": {
        "test_a_comparison_judges_in_the_dtype_of_its_model": 0,
    },
    "test_prefixed.py": {
        "test_features_are_read_wherever_their_positions_are_evaluated": 0,
    },
    "test_probes.py": {
        "test_all_of_the_model_learns_and_masks_change_no_text": 0,
        "test_drafts_are_what_prompt_tokens_behind_the_root_said": 1,
        "test_drafts_of_masks_are_what_masks_behind_the_root_said": 0,
        "test_drafts_of_pseudo_states_are_what_they_said": 0,
        "test_masks_change_no_token": 1,
        "test_no_token_is_another": 1,
        "test_pseudo_states_change_no_token": 1,
        "test_the_loss_of_pseudo_states_is_the_papers_by_hand": 1,
        "test_the_prompt_tokens_of_another_node_are_caught": 0,
    },
    "test_programs.py": {
        "test_every_entry_decodes_what_run_does": 2,
    },
    "test_pruned.py": {
        "test_learning_a_tree_is_hardly_dearer_than_knowing_it": 0,
        "test_sizes_that_are_chosen_change_no_token": 1,
    },
    "test_published.py": {
        "test_every_token_of_a_dit_is_the_likeliest_where_it_was_filled": 1,
        "test_fast_dllm_v2": 1,
        "test_llada2": 1,
        "test_logits": 1,
    },
    "test_published_drafters.py": {
        "test_an_eagle3_layer_says_what_its_file_does": 0,
        "test_an_eagle_layer_says_what_its_file_does": 1,
    },
    "test_quantized.py": {
        "test_a_draft_across_groups_reads_other_bits": 0,
        "test_the_model_on_codes_is_the_model_on_keys_coded_by_hand": 0,
        "test_tokens_are_those_of_plain_decoding_on_eight_bits": 0,
    },
    "test_relaxed.py": {
        "test_groups_have_the_targets_law_and_tokens_do_not": 1,
        "test_the_limit_of_the_knob_is_exact": 1,
    },
    "test_revising.py": {
        "test_a_full_block_is_edited_while_that_changes_it": 1,
        "test_a_judge_has_a_say_in_which_spans_stay": 0,
        "test_a_probe_does_not_see_its_twin_and_is_not_seen": 0,
        "test_guidance_from_a_poorer_context": 0,
        "test_refining_nothing_is_llada": 0,
        "test_secondary_remasking_keeps_to_the_schedule": 0,
        "test_wino_that_doubts_nothing_is_a_capped_threshold": 0,
    },
    "test_role_files.py": {
        "test_a_command_makes_what_another_decodes_with": 0,
        "test_trigrams_and_published_heads_decode_by_name": 0,
    },
    "test_rotary_grid.py": {
        "test_one_row_is_a_line_of_heads_of_half_the_size": 0,
    },
    "test_scales.py": {
        "test_a_scale_is_drawn_from_those_before_it": 1,
    },
    "test_sharding.py": {
        "test_every_device_holds_its_share_of_an_8b_shape": 1,
        "test_tokens_on_a_mesh_are_those_of_one_device": 1,
        "test_tokens_with_gathered_weights_are_those_of_one_device": 0,
        "test_weights_split_over_fsdp_stay_split_in_the_loop": 1,
    },
    "test_spec_vlm.py": {
        "test_a_layer_learns_to_draft_behind_images": 0,
        "test_a_longer_question_is_not_scored_and_not_seen_too_early": 0,
        "test_decoding_is_the_multimodal_targets_token_for_token": 1,
        "test_drafts_are_those_of_a_drafter_that_keeps_nothing": 1,
        "test_image_tokens_and_context_are_one_to_the_layer": 0,
    },
    "test_spelled.py": {
        "test_drafts_are_the_letters_continuation_read_back": 1,
        "test_rejection_by_that_law_is_lossless_by_enumeration": 0,
    },
    "test_staged.py": {
        "test_a_small_net_learns_what_belongs_together": 0,
    },
    "test_stored_tensors.py": {
        "test_a_prefix_may_be_missing": 1,
        "test_a_quantised_configuration_is_called_quantised": 1,
        "test_a_round_trip_of_a_head_that_config_json_is_wrong_about": 1,
    },
    "test_structure.py": {
        "test_no_cache_sized_copy_in_the_loop": 2,
    },
    "test_text_lenses.py": {
        "test_every_node_is_drafted_in_its_own_context": 1,
        "test_rejection_under_a_lens_is_lossless_in_law": 0,
    },
    "test_train.py": {
        "test_longer_run_continues_a_constant_rate_and_nothing_else": 0,
        "test_plain_pass_is_the_transformers": 1,
    },
    "test_train_begun.py": {
        "test_a_causal_start_learns_diffusion_sooner": 0,
        "test_an_infilling_is_scored_as_it_is_decoded": 0,
        "test_ar2diff_begins_with_the_causal_models_parameters": 0,
    },
    "test_train_certainty.py": {
        "test_a_filters_folder_decodes_with_its_model_and_no_other": 0,
        "test_blocks_are_those_that_are_decoded": 1,
        "test_only_what_is_right_is_made_certain": 0,
        "test_the_loss_is_the_papers_by_hand": 0,
        "test_the_rerun_is_the_greedy_decode_by_hand": 0,
    },
    "test_train_consistency.py": {
        "test_gradients_reach_the_student_and_not_through_its_target": 0,
        "test_the_loss_is_the_papers_by_hand": 1,
        "test_what_collapsed_is_left_out_and_a_folder_is_written_whole": 0,
    },
    "test_train_decode.py": {
        "test_a_run_on_other_tokens_than_bytes_decodes_ids": 0,
    },
    "test_train_denoising.py": {
        "test_a_run_learns_to_denoise": 0,
    },
    "test_train_figures.py": {
        "test_a_vocabulary_that_is_no_bytes_is_scored_by_the_token": 0,
        "test_bits_per_byte_are_those_of_an_independent_network": 1,
        "test_heads_are_not_scored_on_padding": 1,
    },
    "test_train_folder.py": {
        "test_a_run_that_was_stopped_ends_with_the_same_bits": 1,
        "test_a_step_that_is_not_finite_reaches_no_checkpoint": 1,
    },
    "test_train_glancing.py": {
        "test_a_run_learns_to_draft": 0,
        "test_drafts_are_the_blanks_that_training_fills": 0,
        "test_the_loss_is_the_papers_by_hand": 1,
    },
    "test_train_grpo.py": {
        "test_the_loss_is_the_papers_by_hand": 0,
        "test_the_reward_rises": 0,
        "test_the_rollout_is_the_decode": 0,
    },
    "test_train_judge.py": {
        "test_a_run_learns_what_the_decode_may_accept": 0,
    },
    "test_train_mesh.py": {
        "test_a_moving_average_is_the_result_where_one_is_asked_for": 0,
        "test_a_run_goes_on_on_another_mesh": 0,
        "test_compute_in_bfloat16_keeps_a_float32_state": 0,
        "test_decay_shrinks_the_roles_it_is_for_and_no_other": 1,
        "test_parts_of_a_batch_add_up": 0,
    },
    "test_train_needs.py": {
        "test_each_pair_is_refused_or_cannot_see_what_it_predicts": 1,
    },
    "test_train_property.py": {
        "test_a_config_trains_or_is_refused": 0,
    },
    "test_train_refining.py": {
        "test_a_run_learns_to_revise": 0,
        "test_gradients_reach_every_parameter_and_none_flows_through_a_guess": 0,
    },
    "test_train_sets.py": {
        "test_a_run_learns_to_fill_sets": 0,
        "test_gradients_reach_every_parameter_by_either_loss": 0,
        "test_one_place_a_call_from_the_left_is_the_autoregressive_decode": 0,
        "test_text_in_a_block_that_saw_its_masks_would_be_another_law": 0,
    },
    "test_train_tasks.py": {
        "test_loss_and_figure_are_the_bound_of_the_answer": 0,
    },
    "test_transformer.py": {
        "test_chunked_prefill_equals_one_call": 1,
        "test_the_compiled_loop_never_copies_a_cache": 1,
        "test_training_forward_equals_a_decoding_call": 2,
        "test_tree_lanes_equal_the_path_they_stand_for": 1,
    },
    "test_translated.py": {
        "test_translated_drafts_are_lossless_in_law": 0,
    },
    "test_trees.py": {
        "test_a_row_stops_growing_by_itself": 0,
        "test_a_tree_of_sixty_nodes_makes_no_longer_program": 1,
        "test_growth_is_what_lists_give": 1,
        "test_the_grown_tree_accepts_most_and_as_much_as_it_says": 0,
    },
    "test_trigrams.py": {
        "test_no_copy_of_the_weights_in_the_loop": 0,
        "test_the_tree_is_the_likeliest_of_all": 1,
    },
    "test_verifiers.py": {
        "test_a_tree_of_canvases_is_the_static_decode": 0,
        "test_assd_on_a_deep_model_is_its_raster_order": 0,
        "test_freedave_at_best": 1,
        "test_freedave_is_the_static_decode_in_fewer_calls": 1,
        "test_freedave_of_a_block_model_is_its_static_decode": 0,
        "test_freedave_passes_through_the_canvases_of_the_static_decode": 1,
        "test_trees_that_mix_their_branches_are_caught": 1,
    },
    "test_visual.py": {
        "test_a_query_more_changes_no_other_in_arpg": 0,
        "test_a_row_of_nar_that_ends_early_sees_no_empty_slots": 0,
        "test_a_step_with_a_cache_says_what_the_packed_pass_was_trained_on": 0,
        "test_a_window_of_a_row_is_raster_decoding_token_for_token": 1,
        "test_arpgs_two_passes_with_a_cache_are_the_packed_ones": 0,
        "test_every_order_one_by_one_is_the_models_any_order_law": 1,
        "test_guidance_grows_with_what_is_decided": 1,
        "test_masked_methods_take_the_same_orders": 1,
    },
    "test_vocab_head.py": {
        "test_a_split_vocabulary_travels_as_a_few_numbers_a_row": 1,
        "test_tiles_equal_float64": 1,
    },
}


def waiting(items):
    """The items of one run that wait."""
    cases = {}
    for item in items:
        name = getattr(item, "originalname", None)
        if item.get_closest_marker("thorough"):
            continue
        if name in BY_DEFAULT.get(item.path.name, {}):
            cases.setdefault((item.path.name, name), []).append(item)
    found = []
    for (file, name), every in cases.items():
        kept = BY_DEFAULT[file][name]
        step = (len(every) - 1) / max(kept - 1, 1)
        chosen = {round(step * i) for i in range(min(kept, len(every)))}
        found += [each for i, each in enumerate(every) if i not in chosen]
    return found
