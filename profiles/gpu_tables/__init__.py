"""How long kernels take on server GPUs, as others measured them: tables that a package of the registry brings."""
