import * as explorer from "./explorer.js";
import { serve } from "./remote.js";

serve(explorer);
