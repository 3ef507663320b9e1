"""Files that people have a trained CNN in, made into what the API takes: a teacher's spec, and safetensors.

All of it runs where the file lies, on the client: the API and its workers read safetensors alone. Torch and timm are
imported by `intake` and what it stands on; `file_kinds`, `config_folders` and `hub` do without.
"""
