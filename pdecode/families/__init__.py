"""Loops: a state and a step. A family owns both; methods hand it their parts."""
