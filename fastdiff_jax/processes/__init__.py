"""Forward processes x_t = scale(t) (x0 + sigma(t) eps)."""
