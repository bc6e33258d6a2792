"One run, many runs, arms and seeds"
