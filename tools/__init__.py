"""Commands, one a file; what they are made of is in folders by purpose."""
