"""What the benchmarks write"""
import pandas as pd

def keep_table(new, file, key):
    "Write a table; rows of `file` stay if nothing with the same `key` was measured again, whatever types a CSV file makes of it"
    def keys(df): return pd.MultiIndex.from_frame(df[key].astype(str))
    if file.exists() and len(old := pd.read_csv(file, dtype={k:str for k in key})): new = pd.concat([old[~keys(old).isin(keys(new))], new])
    new.to_csv(file, index=False)
