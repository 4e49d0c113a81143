"""Open-vocabulary part segmentation. `partseg.load(checkpoint).predict(image, vocabulary)` is the notebook entry."""
