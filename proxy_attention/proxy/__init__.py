"Train on what the model did not look at"
