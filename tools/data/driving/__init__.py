"""Simulated cameras and LiDAR on a moving vehicle, written in the layout of nuScenes."""
