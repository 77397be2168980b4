"""The command `clipo`: training, evaluation and their tables around the method. Nothing outside of this package
imports it."""
