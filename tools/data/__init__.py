"""Images, annotations and data sets: read, checked, made, drawn into pictures."""
