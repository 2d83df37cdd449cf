"""MLX on Apple silicon: a folder that mlx-lm loads, quantized layer by layer."""
