class WrappersMP:
    PREPARE_SAMPLING: str
