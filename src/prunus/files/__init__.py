"""Files and folders that are whole at any time, and plain data read from them."""
