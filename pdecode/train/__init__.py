"""Training: one flat trainer, objectives a file each, figures, the n-gram baseline."""

from pdecode.train.config import TrainConfig
from pdecode.train.signals import Interrupted
from pdecode.train.trainer import Result, dry_run, run_config, train

__all__ = ["Interrupted", "Result", "TrainConfig", "dry_run", "run_config", "train"]
