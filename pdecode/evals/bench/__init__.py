"""What a call, a loop and a kernel cost, measured."""
