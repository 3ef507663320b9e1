"""Object storage: folders and buckets behind one face, the local cache, and the catalog of what is stored."""
