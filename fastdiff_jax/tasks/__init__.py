"""Tasks, conditions besides the label that are made of the images: build(options, models, shape) -> Task."""
