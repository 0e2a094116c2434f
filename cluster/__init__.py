"""Everything that makes it distributed: the only folder that knows Ray. Also the command line."""
