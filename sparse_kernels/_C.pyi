def build_info() -> dict[str, str]:
    """Compiler, torch version at build time, flags, and the instruction set picked at run time."""
