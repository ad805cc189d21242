"""Other projects' interfaces, by the paths under which people import them."""
