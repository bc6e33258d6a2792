"A page in Debian's chromium without a window, driven over its DevTools pipe: no driver, no network, no package"
import json, os, shutil, subprocess, time
from base64 import b64decode
from select import select

chromium = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)

class Page:
    "`with Page(file) as p: p.js('document.title')`; `p.said` is what went wrong: errors, dialogs, requests to anywhere"
    def __init__(self, file, folder, width=1280, height=900):
        (r,self.w),(self.r,w) = os.pipe(),os.pipe()
        def three_and_four(): # where chromium reads commands and writes answers
            a,b = os.dup(r),os.dup(w)
            os.dup2(a, 3); os.dup2(b, 4)
        self.p = subprocess.Popen([
            chromium,'--headless','--no-sandbox','--disable-gpu','--no-first-run','--disable-dev-shm-usage','--hide-scrollbars',
            '--remote-debugging-pipe',f'--user-data-dir={folder}',f'--window-size={width},{height}','about:blank'],
            preexec_fn=three_and_four, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(r); os.close(w)
        self.n,self.rest,self.said,self.session,self.loaded = 0,b'',[],None,False
        self.size,self.file = (width,height),file

    def __enter__(self):
        try:
            target = next(o for o in self.send('Target.getTargets')['targetInfos'] if o['type']=='page')['targetId']
            self.session = self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
            for o in ('Page','Runtime','Log','Network'): self.send(f'{o}.enable')
            self.width(*self.size)
            self.open(self.file)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.p.kill(); self.p.wait()
        os.close(self.r); os.close(self.w)

    def read(self, seconds=30):
        "The next message"
        until = time.monotonic()+seconds
        while b'\0' not in self.rest:
            if not select([self.r], [], [], max(0, until-time.monotonic()))[0]: raise TimeoutError('chromium says nothing')
            more = os.read(self.r, 1<<20)
            if not more: raise EOFError('chromium has ended')
            self.rest += more
        one,_,self.rest = self.rest.partition(b'\0')
        o = json.loads(one)
        how,about = o.get('method'),o.get('params', {})
        if how=='Page.loadEventFired': self.loaded = True
        elif how=='Page.javascriptDialogOpening': self.said.append(('dialog',about['message']))
        elif how=='Runtime.exceptionThrown': self.said.append(('error',about['exceptionDetails']['text']))
        elif how=='Runtime.consoleAPICalled': self.said.append((about['type'],str(about['args'])[:200]))
        elif how=='Log.entryAdded': self.said.append((about['entry']['level'],about['entry']['text']))
        elif how=='Network.requestWillBeSent' and not about['request']['url'].startswith(('data:','file:','about:')):
            self.said.append(('request',about['request']['url']))
        return o

    def send(self, method, **params):
        "A command, and its answer"
        self.n += 1
        os.write(self.w, json.dumps(
            dict(id=self.n, method=method, params=params)|(dict(sessionId=self.session) if self.session else {})).encode()+b'\0')
        while (o := self.read()).get('id')!=self.n: pass
        if 'error' in o: raise RuntimeError(f"{method}: {o['error']}")
        return o['result']

    def open(self, file):
        self.loaded = False
        self.send('Page.navigate', url=f'file://{os.path.abspath(file)}')
        while not self.loaded: self.read()

    def js(self, expression):
        "What an expression is worth"
        o = self.send('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in o: raise RuntimeError(o['exceptionDetails']['exception'].get('description'))
        return o['result'].get('value')

    def width(self, width, height=900):
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width<600)
    def media(self, type='', **features):
        self.send('Emulation.setEmulatedMedia', media=type,
                  features=[dict(name=k.replace('_','-'), value=v) for k,v in features.items()])
    def key(self, key, code=0, text=''):
        for o in ('keyDown','keyUp'):
            self.send('Input.dispatchKeyEvent', type=o, key=key, code=key, windowsVirtualKeyCode=code,
                      **(dict(text=text) if text and o=='keyDown' else {}))
    def mouse(self, x, y, kind='mouseMoved', **kw): self.send('Input.dispatchMouseEvent', type=kind, x=x, y=y, **kw)
    def picture(self, whole=False):
        return b64decode(self.send('Page.captureScreenshot', format='png', captureBeyondViewport=whole)['data'])
    def pdf(self):
        return b64decode(self.send('Page.printToPDF', printBackground=False, paperWidth=8.27, paperHeight=11.69)['data'])
