"""What a test, a demo or an integrator's own suite needs to run real agents without a key or a network."""
