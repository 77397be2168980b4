"""Experiments with CLIPO on tasks that a program can check step by step."""
