"""Names of objects, parts and object-parts: the frozen vocabulary, the shipped ones, and words as people write them."""
