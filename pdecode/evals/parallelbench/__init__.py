"""Where deciding several tokens at once breaks, in theory and measured."""
