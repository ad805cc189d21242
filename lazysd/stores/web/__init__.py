"""Reading over HTTP: connections, range requests, files and folders of a server. Imported when a URL is opened."""
