"""How far a compressed model's distributions are from its reference's."""
