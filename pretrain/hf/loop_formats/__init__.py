"""Published looped models in their own file layouts."""
