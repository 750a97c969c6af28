"""The demo: a detector and a segmentor trained, tested, drawn and exported."""
