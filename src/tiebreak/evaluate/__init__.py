"""Win rates, reward-model accuracy and calibration."""
