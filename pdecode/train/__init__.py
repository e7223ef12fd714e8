"""Training: one flat trainer, its objectives, figures and the n-gram baseline."""

from pdecode.train.config import TrainConfig
from pdecode.train.trainer import Result, run_config, train

__all__ = ["Result", "TrainConfig", "run_config", "train"]
