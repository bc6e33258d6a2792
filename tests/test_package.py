"The house: metadata, floors, notebooks and modules in step, the README and its source"
import ast, configparser, filecmp, importlib.metadata, json, re, shutil, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).parent.parent
cfg = configparser.ConfigParser(interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
nbs = sorted(root.glob('nbs/**/*.ipynb'))
floors = dict(core=0, heatmap=1, schedule=1, data=1, targets=1, runs=1, config=1, beds=2, datasets=2, selection=2, masking=2, layers=3, serving=3, cams=4, perturbation=5, transformers=5, attribution=6, explain=7,
              probe=8, metrics=8, interpret=8, callback=9, arms=10, logs=10, checkpoint=10, prune=10, train=11, use=11, demo=11, compare=12, sweep=12, page=12, report=13, cli=14)
pytestmark = pytest.mark.limit(120)

def test_settings_setup_and_installed_package_agree():
    meta = importlib.metadata.metadata('proxy_attention')
    assert meta['Name'].replace('-','_')==cfg['lib_name'] and meta['Version']==cfg['version'] and meta['Summary']==cfg['description']
    assert meta['Requires-Python']==f">={cfg['min_python']}"
    assert set(meta.get_all('Provides-Extra'))=={'dev','multi-gpu'} 
    norm = lambda o: re.sub(r'\s', '', o)
    needs = [norm(o.split(';')[0]) for o in meta.get_all('Requires-Dist')]
    assert set(needs)=={norm(o) for k in ('requirements','dev_requirements') for o in cfg[k].split()}|{'accelerate'}
    scripts = {f'{o.name}={o.value}' for o in importlib.metadata.distribution('proxy_attention').entry_points if o.group=='console_scripts'}
    assert scripts=={o.strip() for o in cfg['console_scripts'].splitlines() if o.strip()}

def test_setup_does_without_pkg_resources(): assert 'pkg_resources' not in (root/'setup.py').read_text(encoding='utf-8')

def test_top_level():
    tracked = subprocess.run(['git','ls-files'], cwd=root, capture_output=True, text=True)
    if tracked.returncode: pytest.skip('not a git checkout')
    top = {o.split('/')[0] for o in tracked.stdout.split()}
    assert top == {'nbs','proxy_attention','settings.ini','setup.py','tests','README.md','pyproject.toml','LICENSE','.gitignore','.ci','benchmarks'}

def imports(f):
    "The rooms that a module imports"
    for o in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
        if isinstance(o, ast.ImportFrom):
            parts = (o.module or '').split('.')
            if parts[0]==cfg['lib_name'] and len(parts)>1: yield parts[1]
            elif o.level: yield parts[0]
            elif parts[0]==cfg['lib_name']: yield from (a.name for a in o.names)
        elif isinstance(o, ast.Import): yield from (a.name.split('.')[1] for a in o.names if a.name.startswith(cfg['lib_name']+'.'))

def test_a_room_imports_only_lower_floors():
    rooms = {f.stem for f in (root/cfg['lib_name']).glob('*.py')} - {'__init__','_modidx','all'}
    assert rooms==set(floors)
    for room in rooms:
        for o in imports(root/cfg['lib_name']/f'{room}.py'): assert floors[o]<floors[room], f'{room} (floor {floors[room]}) imports {o} (floor {floors[o]})'

def copy_of(tmp_path):
    for o in ('nbs','proxy_attention'): shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints'))
    for o in ('pyproject.toml','settings.ini','README.md'): shutil.copy(root/o, tmp_path)
    return tmp_path

def unchanged(tmp_path, command, folder, pattern):
    d = copy_of(tmp_path)
    res = subprocess.run([Path(sys.executable).parent/command], cwd=d, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    changed = [f.name for f in sorted((root/folder).rglob(pattern)) if not filecmp.cmp(f, d/f.relative_to(root), shallow=False)]
    assert not changed, f'`{command}` changes {changed}: run it and commit'
    assert {f.name for f in (d/folder).rglob(pattern)}=={f.name for f in (root/folder).rglob(pattern)}

def test_modules_are_in_step_with_notebooks(tmp_path): unchanged(tmp_path, 'nbdev-export', 'proxy_attention', '*.py')
def test_notebooks_are_clean(tmp_path): unchanged(tmp_path, 'nbdev-clean', 'nbs', '*.ipynb')

@pytest.mark.parametrize('f', nbs, ids=lambda f: f.stem)
def test_notebook_keeps_its_outputs(f):
    cells = json.loads(f.read_text(encoding='utf-8'))['cells']
    shown = [o for c in cells for o in c.get('outputs', [])]
    assert not any(o['output_type']=='error' for o in shown)
    assert f.stem in ('00_core','index') or shown, 'a lesson shows something'
    assert f.stat().st_size < 600_000
    assert not re.search(r'/work/|/root/|site-packages', json.dumps(shown)), 'a path of the machine, or a library warning, is in an output'

def readme():
    "`index.ipynb` as Markdown: its text and its code, without outputs"
    cells = json.loads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells']
    src = lambda c: ''.join(c['source']).strip()
    parts = [src(c) if c['cell_type']=='markdown' else f'```python\n{src(c)}\n```' for c in cells if src(c) and '#| hide' not in src(c)]
    return '\n\n'.join(parts).replace('](images/', '](nbs/images/').replace('](tutorials/', '](nbs/tutorials/') + '\n'

def test_readme_is_index():
    assert (root/'README.md').read_text(encoding='utf-8')==readme(), 'run `python tests/test_package.py` to write README.md from nbs/index.ipynb'

def test_readme_has_the_two_commands():
    text = readme()
    assert '\npip install . && proxy-demo\n' in text and '\npip install -e ".[dev]" && pytest\n' in text
    for o in re.findall(r'\]\((nbs/[^)]+)\)', text): assert (root/o).exists()

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
