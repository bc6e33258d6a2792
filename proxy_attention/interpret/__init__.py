"Look, and judge the looking"
