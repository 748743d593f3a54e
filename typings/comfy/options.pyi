args_parsing: bool
