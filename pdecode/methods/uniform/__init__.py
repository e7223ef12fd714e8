"""Methods for models trained with uniform noise."""
