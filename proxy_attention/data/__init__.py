"Images with labels, one split, and the whole picture"
