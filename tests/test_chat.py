"""Conversations, tokenizer files and prompts, as transformers reads them.

Tests marked `oracle` compare with it; they need the extra.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoints import GOLDEN, command

import pdecode
from pdecode import generation, prompts, rng
from pdecode.checkpoints import tokenizer as tokenizers

try:
    import transformers
except ImportError:
    transformers = None

WORDS = (
    "<unk> <s> </s> user assistant system : hello world tools none true < > |".split()
)
CHAT = [{"role": "user", "content": "hello"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} : {{ m.content }} "
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)


def word_folder(folder, settings=None, *, bos=True, **files):
    """A folder whose tokenizer knows WORDS and, if `bos`, begins a text with <s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(exist_ok=True)
    ids = {word: place for place, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>"])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": {}}
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings = named if settings is None else settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        name = name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
    return folder


def chat_folder(folder, template=TEMPLATE, **more):
    return word_folder(folder, chat_template__jinja=template, **more)


@pytest.mark.parametrize(
    "template, text",
    [
        ("{{ 'yes' if tools is not none else 'no' }}", "no"),
        ("{{ 'yes' if documents is none else 'no' }}", "yes"),
        ("{% if tools %}tools{% else %}none{% endif %}", "none"),
        (
            "{{ {'b': 'é', 'a': [1]} | tojson(ensure_ascii=True, sort_keys=True) }}",
            r'{"a": [1], "b": "\u00e9"}',
        ),
        ("{{ {'a': '<é>'} | tojson(separators=(',', ':')) }}", '{"a":"<é>"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("a{% generation %}b{{ 1 + 1 }}{% endgeneration %}c", "ab2c"),
        ("{%- generation -%} b {%- endgeneration -%}", "b"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% for m in messages %}{{ 'x' in m }}{% break %}{% endfor %}", "False"),
        ("{{ pad_token }}|{{ eos_token }}", "|</s>"),
        ("{{ messages[0].content }}", "hello"),
    ],
)
def test_what_a_template_may_ask_for(template, text, tmp_path):
    loaded = tokenizers.load(chat_folder(tmp_path, template))
    assert loaded.render([{**CHAT[0], "x": None}]) == text
    if transformers is not None:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        given = dict(tokenize=False, add_generation_prompt=True)
        assert theirs.apply_chat_template(CHAT, **given) == text


def test_tools_and_variables_reach_the_template(tmp_path):
    template = "{{ tools | length }} {{ mood }} {{ add_generation_prompt }}"
    loaded = tokenizers.load(chat_folder(tmp_path, template))
    made = loaded.render(CHAT, tools=[{}, {}], mood="calm", add_generation_prompt=False)
    assert made == "2 calm False"


def test_where_a_template_may_stand(tmp_path):
    def rendered(settings=None, **files):
        for old in tmp_path.glob("*"):
            old.unlink()
        return tokenizers.load(word_folder(tmp_path, settings, **files)).render(CHAT)

    by_name = [dict(name="default", template="a"), dict(name="rag", template="b")]
    assert rendered({"chat_template": "a"}) == "a"
    assert rendered({"chat_template": by_name}) == "a"
    assert rendered({"chat_template": {"default": "a"}}) == "a"
    assert rendered({"chat_template": "a"}, chat_template__jinja="file") == "file"
    assert rendered(chat_template__json={"chat_template": "json"}) == "json"
    with pytest.raises(ValueError, match="chat templates rag, but none is the default"):
        rendered({"chat_template": by_name[1:]})
    with pytest.raises(ValueError, match="no chat template: pass plain text"):
        rendered()
    with pytest.raises(ValueError, match="3 is no text"):
        rendered({"chat_template": 3})


def test_no_second_bos(tmp_path):
    loaded = tokenizers.load(chat_folder(tmp_path))
    rendered = loaded.render(CHAT)
    ids = [1, 3, 6, 7, 2, 4, 6]
    assert rendered == "<s> user : hello </s> assistant :"
    assert loaded.chat(CHAT) == ids == loaded.encode(rendered)
    assert loaded.encode("hello") == [1, 7]


def test_text_that_looks_like_a_special_token_is_text(tmp_path):
    loaded = tokenizers.load(word_folder(tmp_path))
    assert loaded.encode("hello <|world|>") == [1, 7, 0, 8, 0]
    assert loaded.encode("hello </s>") == [1, 7, 2]


# Facts of one tokenizer, spread over its files in the ways that folders have them.
MASK = dict(content="<m>", lstrip=False, rstrip=False, special=True)
SPREAD = [
    dict(
        settings=dict(
            bos_token="<s>",
            eos_token="</s>",
            mask_token="<m>",
            added_tokens_decoder={"15": MASK},
        )
    ),
    dict(
        settings={},
        special_tokens_map__json=dict(
            bos_token="<s>", eos_token="</s>", mask_token=MASK
        ),
    ),
    dict(
        settings=dict(eos_token="<unk>"),
        special_tokens_map__json=dict(
            bos_token="<s>", eos_token="</s>", mask_token="<m>"
        ),
        added_tokens__json={"<m>": 15},
    ),
    dict(
        settings=dict(
            bos_token=dict(MASK, content="<s>", __type="AddedToken"),
            eos_token="</s>",
            mask_token="<m>",
        ),
        added_tokens__json={"<m>": 15, "<n>": 16},
    ),
    # A list of added tokens says that tokenizer_config.json is whole.
    dict(
        settings=dict(
            bos_token="<s>",
            eos_token="</s>",
            mask_token="<m>",
            added_tokens_decoder={"15": MASK},
        ),
        special_tokens_map__json=dict(eos_token="<unk>"),
    ),
]


@pytest.mark.parametrize("files", SPREAD)
def test_facts_of_a_tokenizer_are_read_from_all_its_files(files, tmp_path):
    files = dict(files)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **files.pop("settings")}
    word_folder(tmp_path, settings, **files)
    loaded = tokenizers.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.mask_id) == (1, 2, 15)
    assert tokenizers.mask_id(tmp_path) == 15
    assert loaded.encode("hello<m>") == [1, 7, 15]
    if transformers is not None:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
        assert theirs.mask_token_id == 15
        assert theirs("hello<m>")["input_ids"] == [1, 7, 15]


def test_settings_of_a_training_run_do_not_cut_a_prompt(tmp_path):
    word_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["truncation"] = dict(
        direction="Right", max_length=3, strategy="LongestFirst", stride=0
    )
    raw["padding"] = dict(
        strategy={"Fixed": 9}, direction="Right", pad_to_multiple_of=None, pad_id=0,
        pad_type_id=0, pad_token="<unk>",
    )  # fmt: skip
    path.write_text(json.dumps(raw))
    assert tokenizers.load(tmp_path).encode("hello " * 5) == [1, *[7] * 5]


def merges_folder(folder, settings, model_type):
    """vocab.json and merges.txt of a byte-level BPE, and no tokenizer.json."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2", "Ġ w"]
    words = letters + [merge.replace(" ", "") for merge in merges] + ["<|endoftext|>"]
    ids = {word: place for place, word in enumerate(words)}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return ids


TEXTS = ["hello hello", " 12 1212", "Héllo, don't\n\n w", "e\u0301 <|endoftext|>!", ""]
KINDS = [
    ("qwen2", dict(tokenizer_class="Qwen2Tokenizer")),
    ("gpt2", dict(tokenizer_class="GPT2Tokenizer")),
    ("gpt2", None),
    ("qwen2", None),
    (
        "qwen2",
        dict(
            tokenizer_class="Qwen2Tokenizer",
            mask_token="<|mask|>",
            eos_token="<|endoftext|>",
            added_tokens_decoder={
                "263": dict(content="<|endoftext|>", special=True),
                "264": dict(content="<|mask|>", special=True),
            },
        ),
    ),
    ("gpt2", dict(tokenizer_class="GPT2Tokenizer", add_bos_token=True)),
    ("gpt2", dict(tokenizer_class="GPT2Tokenizer", add_prefix_space=True)),
]


@pytest.mark.parametrize("model_type, settings", KINDS)
def test_a_tokenizer_of_a_vocabulary_and_merges(model_type, settings, tmp_path):
    ids = merges_folder(tmp_path, settings, model_type)
    loaded = tokenizers.load(tmp_path)
    assert loaded.eos_id == ids["<|endoftext|>"]
    made = loaded.encode("hello hello", bos=False)
    is_spaced = bool(settings) and settings.get("add_prefix_space", False)
    assert made == [ids["Ġhello" if is_spaced else "hello"], ids["Ġhello"]]
    assert loaded.decode(made).strip() == "hello hello"
    is_dream = bool(settings) and "mask_token" in settings
    assert loaded.mask_id == (264 if is_dream else None)
    if transformers is not None:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert loaded.encode(text) == theirs(text)["input_ids"], text


def test_a_damaged_vocabulary_is_one_line(tmp_path):
    merges_folder(tmp_path, None, "gpt2")
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab\.json is damaged"):
        tokenizers.load(tmp_path)


# From the command line.


@pytest.fixture
def instruct(tmp_path):
    """A tiny model whose folder has a tokenizer and a chat template."""
    import shutil

    folder = tmp_path / "tiny"
    shutil.copytree(GOLDEN / "llada_tiny", folder)
    return chat_folder(folder)


SHORT = ("--method", "llada", "--max-new-tokens", 4, "--set", "steps=2")


def decoded(folder, *arguments):
    code, out, err = command(
        "generate", "--model", folder, *SHORT, *arguments, "--json"
    )
    assert code == 0, err
    return json.loads(out)["tokens"], err


@pytest.fixture(autouse=True)
def no_cache_on_disk(monkeypatch):
    monkeypatch.setattr("pdecode.cli.program_cache.enable", lambda **_: None)


def test_chat_decodes_what_the_template_makes(instruct):
    ids = tokenizers.load(instruct).chat(CHAT)
    wanted, _ = decoded(instruct, "--prompt-ids", json.dumps([ids]))
    assert decoded(instruct, "--chat", "--prompt", "hello") == (wanted, "")
    system = [{"role": "system", "content": "world"}, *CHAT]
    ids = tokenizers.load(instruct).chat(system)
    wanted, _ = decoded(instruct, "--prompt-ids", json.dumps([ids]))
    options = ("--chat", "--system", "world", "--prompt", "hello")
    assert decoded(instruct, *options) == (wanted, "")


def test_a_bare_sentence_for_a_model_with_a_template_draws_one_line(instruct):
    _, err = decoded(instruct, "--prompt", "hello")
    assert err.count("\n") == 1 and "--chat asks for a reply" in err
    rendered = tokenizers.load(instruct).render(CHAT)
    assert decoded(instruct, "--prompt", rendered)[1] == ""
    assert decoded(instruct, "--prompt-ids", "[[7]]")[1] == ""


def refused(wanted, *arguments):
    code, out, err = command("generate", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1 and wanted in err, err


def test_what_chat_needs(instruct):
    folder = ("--model", instruct)
    refused("--system needs --chat", *folder, "--system", "x", "--prompt", "x")
    refused("--chat renders text", *folder, "--chat", "--prompt-ids", "[[1]]")
    refused("the default model has no chat template", "--chat", "--prompt", "x")
    refused("--chat needs a message", *folder, "--chat", "--prompt", " ")
    (instruct / "chat_template.jinja").write_text("{{ raise_exception('no systems') }}")
    refused("refused: no systems", *folder, "--chat", "--prompt", "hello")
    (instruct / "chat_template.jinja").write_text("{{ messages | nothing }}")
    refused("the chat template refused: No filter", *folder, "--chat", "--prompt", "x")


# Prompts.


def test_a_prompt_without_tokens_is_one_line_alone_and_in_a_batch(tmp_path):
    loaded = tokenizers.load(word_folder(tmp_path, bos=False))
    for rows in ("   ", ["hello", "   "]):
        index = 0 if isinstance(rows, str) else 1
        with pytest.raises(ValueError, match=f"row {index}, '   ', has no tokens"):
            prompts.encode(rows, loaded)


@pytest.mark.parametrize(
    "given",
    [
        np.array([[1, 2], [3, 4]]),
        jnp.array([[1, 2], [3, 4]]),
        [np.array([1, 2]), jnp.array([3, 4])],
        [[np.int32(1), np.int64(2)], (jnp.int32(3), 4)],
    ],
)
def test_numpy_and_jax_numbers_are_numbers(given):
    assert prompts.encode(given, None) == [[1, 2], [3, 4]]
    made = prompts.from_rows(given, max_new_tokens=np.int64(3))
    assert made.tokens.tolist() == [
        [1, 2],
        [3, 4],
    ] and made.max_new_tokens.tolist() == [3, 3]


def test_one_row_of_numpy_or_jax_ids_is_a_row():
    for row in (np.array([1, 2]), jnp.array([1, 2]), [np.int64(1), jnp.int32(2)]):
        assert prompts.encode(row, None) == [[1, 2]]
    made = pdecode.generate("x", max_new_tokens=np.int64(2), seed=np.int32(3))
    assert made.stats["committed"] == [2]


@pytest.mark.parametrize("bad", [2.5, True, "1", None, [1], np.float32(1), 10**20])
def test_what_is_no_id(bad):
    message = r"which is no id|outside \[0, "
    with pytest.raises(ValueError, match=message):
        prompts.from_rows([[1, bad]], max_new_tokens=1)
    with pytest.raises(ValueError, match=message):
        generation.prepare([[1, bad]])


def test_seeds_are_64_bits_wide_and_all_different():
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**64 - 1]
    keys = [tuple(rng_data(rng.key(seed))) for seed in seeds]
    assert len(set(keys)) == len(seeds)
    assert keys[1] == tuple(rng_data(rng.key(np.uint64(1))))
    import jax

    assert keys[3] == tuple(rng_data(jax.random.key(2**32 - 1)))
    for bad in (-1, 2**64, 1.5, True, "1", None):
        with pytest.raises(ValueError, match="seed="):
            rng.key(bad)


def rng_data(key):
    import jax

    return jax.random.key_data(key).tolist()


def test_numbers_out_of_range_are_one_line():
    refused("seed=18446744073709551616", "--prompt", "x", "--seed", 2**64)
    refused("seed=-1 must lie in [0, 2**64)", "--prompt", "x", "--seed", -1)
    huge = "[[99999999999999999999]]"
    refused("has id 99999999999999999999, outside [0, 260)", "--prompt-ids", huge)
    refused("-99999999999999999999", "--prompt-ids", huge.replace("[9", "[-9"))


HUGE = 99999999999999999999


@pytest.mark.parametrize(
    "wanted, arguments",
    [
        ("max_new_tokens", f"generate --prompt x --max-new-tokens {HUGE}"),
        ("window", f"generate --prompt x --method jacobi --set window={HUGE}"),
        ("steps", f"generate --prompt x --method llada --set steps={HUGE}"),
        (
            "max_ngram",
            f"generate --prompt x --method prompt_lookup --set max_ngram={HUGE}",
        ),
        ("prompt_len", f"compile --prompt-len {HUGE}"),
        ("batch_size", f"compile --batch-size {HUGE}"),
        ("seed", f"compare --seed {HUGE}"),
    ],
)
def test_sizes_out_of_range_are_one_line(wanted, arguments):
    code, out, err = command(*arguments.split())
    assert (code, out) == (2, "") and err.count("\n") == 1, err
    assert f"{wanted}={HUGE} must" in err


def test_rows_and_limits_of_32_bits():
    for bad in (
        dict(row_ids=[2**31]),
        dict(max_new_tokens=2**31),
        dict(max_new_tokens=1.5),
    ):
        with pytest.raises(ValueError, match="whole numbers of 32 bits"):
            prompts.from_rows([[1]], **{"max_new_tokens": 1, **bad})


def test_seeds_that_differ_by_2_to_the_32_give_other_samples():
    def sample(seed):
        given = dict(max_new_tokens=8, temperature=1.0, keep_eos_tail=True)
        return pdecode.generate("x = ", seed=seed, **given).tokens

    assert sample(5) != sample(5 + 2**32) != sample(5 + 2**33)
    assert sample(5 + 2**32) == sample(5 + 2**32)
