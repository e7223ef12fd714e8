"""Machines that are not here: what a decode would need and cost on them."""

from pdecode.hardware.hlo import num_kernels as num_kernels
