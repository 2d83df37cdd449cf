"""Tasks of lm-eval, asked of whatever says log probabilities and goes on after prompts: a model or a package."""
