"The package's metadata: read from `settings.ini`, where it is kept; name, description and addresses are in `pyproject.toml`"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(interpolation=None)
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lines = lambda key: [o.strip() for o in cfg[key].splitlines() if o.strip()]
extras = {name.strip():reqs.split() for name,reqs in (o.split(':', 1) for o in lines('extra_requirements'))}

setup(
    name=cfg['lib_name'], version=cfg['version'], author=cfg['author'],
    license=cfg['license'], license_files=['LICENSE'], keywords=cfg['keywords'].split(),
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=lines('classifiers'),
    packages=find_packages(include=[cfg['lib_name']+'*']), package_data={'': ['*.css','*.js']}, python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require={**extras, 'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_name"]}._modidx:d'],
                  'pyskills': lines('skills')},
    zip_safe=False)
