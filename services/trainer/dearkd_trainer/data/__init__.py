"""The training data: recipes, augmentation, and the loader that resumes and splits among processes."""
