"""Datasets: shards, their manifests and checks, and the folders of images that become shards. No torch."""
