"""The command line: thin, over what the other rooms do."""
