"Where a model looks"
