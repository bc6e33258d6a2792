"What runs came to, as one page"
