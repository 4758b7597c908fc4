"""Object stores by URL: connections, retries, transfers of single files, and the local cache of fetched files."""
