"""What a network is and does, measured: complexity, and pictures of its predictions."""
