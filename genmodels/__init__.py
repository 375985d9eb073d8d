"""Distributed training of generative models, orchestrated as workflows."""
