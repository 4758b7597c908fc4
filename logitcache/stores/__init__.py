"""Object stores by URL: connections, retries, transfers of single files, and what this machine keeps of them."""
