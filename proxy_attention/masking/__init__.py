"Heat and an image make a proxy image: pure functions"
